//! Errors in files people write: position, message, remedy; all of them at once.
