# Compiled, as steps are: clients may send bad items as often as good ones.
