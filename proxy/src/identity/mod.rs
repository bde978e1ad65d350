//! Which binary asked.
