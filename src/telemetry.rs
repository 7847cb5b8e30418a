//! Logs: one JSON object a line on stdout, without secrets, whatever a dependency says.
