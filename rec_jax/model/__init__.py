"""The OneRec encoder-decoder and its sharding table."""
