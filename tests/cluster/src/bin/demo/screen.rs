//! What the demonstration prints: headings, commands as they are typed, what they answer, and times since a moment.

use std::io::{IsTerminal, Write};
use std::time::Duration;

pub struct Screen {
    colours: bool,
    chapter: u32,
}

impl Screen {
    pub fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours, chapter: 0 }
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// Whoever closed the pipe wants to hear no more; the demonstration goes on to its end and its clean-up.
    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    pub fn heading(&mut self, text: &str) {
        self.chapter += 1;
        let text = format!("{}. {text}", self.chapter);
        self.line(&format!("\n{}", self.painted("1", &text)));
    }
    pub fn plain(&self, text: &str) {
        self.line(text);
    }
    pub fn say(&self, text: &str) {
        self.line(&format!("   {text}"));
    }
    /// A command as a person would type it.
    pub fn typed(&self, text: &str) {
        self.line(&format!("   {}", self.painted("36", &format!("$ {text}"))));
    }
    /// A line of what a command has printed.
    pub fn answer(&self, text: &str) {
        self.line(format!("     {text}").trim_end());
    }
    /// Something that happened so long after the moment that counts.
    pub fn at(&self, since: Duration, text: &str) {
        self.line(&format!("   {:>+7} ms  {text}", since.as_millis()));
    }
    pub fn good(&self, text: &str) {
        self.line(&format!("   {}", self.painted("32", text)));
    }
}
