//! The control plane: one ordinary tokio runtime on one thread (decision 10). Clarity beats speed here.

pub mod names;
