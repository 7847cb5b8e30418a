//! The metric families of contract section 7, behind typed calls so that labels stay bounded.
