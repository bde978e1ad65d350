//! Policy: model, compilation, decision.
