//! Logs, metrics, the admin port.
