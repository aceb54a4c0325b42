"""A load on real servers while each of them, and each process of ours, is killed in turn."""
