"""Four stores behind one protocol. A store has never heard of a saga's status."""
