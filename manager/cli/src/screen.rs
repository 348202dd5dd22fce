//! Where answers go and questions come from: the terminal, or a test's buffers.

use crate::args::Output;
use crate::exit::Failure;
use serde::Serialize;
use std::io::{BufRead, IsTerminal, Write};

/// Tables are readable from here on; narrower terminals wrap them.
const WIDTH_MIN: u16 = 60;
/// For pipes and files.
const WIDTH_DEFAULT: u16 = 100;

pub struct Screen<'a> {
    pub output: Output,
    pub out: &'a mut dyn Write,
    pub err: &'a mut dyn Write,
    pub input: &'a mut dyn BufRead,
    /// Somebody is there to answer a question.
    pub asks: bool,
    /// Progress may be drawn over itself.
    pub draws: bool,
    pub width: u16,
}

impl Screen<'_> {
    pub fn with_real<T>(output: Output, work: impl FnOnce(&mut Screen<'_>) -> T) -> T {
        let width = match console::Term::stdout().size_checked() {
            Some((_, columns)) => columns.max(WIDTH_MIN),
            None => WIDTH_DEFAULT,
        };
        let asks = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        work(&mut Screen {
            output,
            out: &mut std::io::stdout(),
            err: &mut std::io::stderr(),
            input: &mut std::io::stdin().lock(),
            asks,
            draws: std::io::stderr().is_terminal() && output == Output::Table,
            width,
        })
    }

    /// The API's JSON for programs, what `table` makes of it for people.
    pub fn show<T: Serialize>(&mut self, value: &T, table: impl FnOnce(&T, u16) -> String) -> Result<(), Failure> {
        match self.output {
            Output::Table => self.text(&table(value, self.width)),
            Output::Json => {
                let text = serde_json::to_string_pretty(value).expect("views are plain JSON");
                self.text(&text)
            }
        }
    }

    /// One object per line, for streams.
    pub fn line<T: Serialize>(&mut self, value: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        match self.output {
            Output::Table => self.text(&text(value)),
            Output::Json => {
                let text = serde_json::to_string(value).expect("views are plain JSON");
                self.text(&text)
            }
        }
    }

    pub fn text(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.out, "{}", text.trim_end_matches('\n'))?;
        Ok(self.out.flush()?)
    }

    /// For people only, beside the answer.
    pub fn note(&mut self, text: &str) -> Result<(), Failure> {
        if self.output == Output::Table {
            writeln!(self.err, "{text}")?;
        }
        Ok(())
    }
}
