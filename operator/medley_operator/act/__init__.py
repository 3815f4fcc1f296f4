"""What the operator does to the cluster: actions on objects, and the service actor that carries steps out."""
