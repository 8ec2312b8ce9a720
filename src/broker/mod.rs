//! The queue: the only room that imports lapin.
