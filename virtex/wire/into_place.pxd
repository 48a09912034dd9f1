# A plain class; compiled, for its methods are called for each piece of a large body.
