//! What the pages name is there.
