//! In place of the crate `brotli`, which Pingora needs for the compression that it can do. sidegate never asks for it: bodies
//! travel as they are. The linker cannot know that, and would put a megabyte of tables and code into the program.
//!
//! Here are the two types and the functions that Pingora names. Whoever writes to them gets an error: nothing is ever
//! passed off as compressed.

#![forbid(unsafe_code)]

use std::io::{self, Write};

/// Would decompress what is written to it.
#[derive(Debug)]
pub struct DecompressorWriter<W>(W);

impl<W: Write> DecompressorWriter<W> {
    /// Holds `writer`.
    pub fn new(writer: W, _buffer_size: usize) -> Self {
        Self(writer)
    }
}

/// Would compress what is written to it.
#[derive(Debug)]
pub struct CompressorWriter<W>(W);

impl<W: Write> CompressorWriter<W> {
    /// Holds `writer`.
    pub fn new(writer: W, _buffer_size: usize, _quality: u32, _window: u32) -> Self {
        Self(writer)
    }
}

fn absent<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "built without brotli"))
}

macro_rules! writers {
    ($($writer:ident),*) => {$(
        impl<W: Write> $writer<W> {
            /// What was written so far: nothing.
            pub fn get_ref(&self) -> &W {
                &self.0
            }

            /// The same, to change.
            pub fn get_mut(&mut self) -> &mut W {
                &mut self.0
            }
        }

        impl<W: Write> Write for $writer<W> {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                absent()
            }

            fn flush(&mut self) -> io::Result<()> {
                absent()
            }
        }
    )*};
}

writers!(DecompressorWriter, CompressorWriter);
