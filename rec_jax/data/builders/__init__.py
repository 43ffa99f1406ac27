"""TensorFlow Datasets builders of public logs; they need no TensorFlow."""
