"""Host side: what a set of predictions is worth, in NumPy.

Arrays here hold real rows only: `loop.Evaluator` has taken the padding out.
"""
