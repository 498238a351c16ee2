"""Emission: from a laid-out program to LLVM IR. One file a family of kernels; `network` strings calls together."""
