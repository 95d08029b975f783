"""What TensorBoard shows of a search."""
