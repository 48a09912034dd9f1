# Compiled, for a client whose heads differ has each of them parsed.
