"""What both tracks stand on: mesh, sharding, optimizer, train step, loop, checkpoint, layers."""
