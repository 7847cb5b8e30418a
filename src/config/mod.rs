//! Configuration: read, judged as a whole, turned into each layer's settings.
