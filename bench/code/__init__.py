"""The code itself: what it is made of, how much of it a walk crosses, what libraries could do."""
