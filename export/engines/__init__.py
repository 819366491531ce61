"""From a bundle's graphs to TensorRT engines: what a target can do, one building process per graph, and a census of
what the builder made of the precision that was promised."""
