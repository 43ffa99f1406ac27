"""TensorFlow Datasets builders of the public problem sets."""
