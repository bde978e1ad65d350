//! A YAML tree with positions.
