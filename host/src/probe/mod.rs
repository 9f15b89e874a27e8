//! What a patch does when it is asked: golden vectors, properties, bounds and recorded calls.
