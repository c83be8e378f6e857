"""INT8 in training: a student that computes as its INT8 file will, tensor by tensor.

topology    which operations run in int8 beside each other: the rules that export and training share
trace       a network's operations as one pass shows them
flavours    which tensors are rounded for a target
fold        batch norms into convolutions
student     the student with its fake quantisers
"""
