//! `patchhost train`: its forward pass against the runtime's, its gradients against finite differences, and runs of the
//! verb from outside.

mod model;
