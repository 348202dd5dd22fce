//! A bounded buffer between two connections. Bytes pass it in three states: read, judged (may be written), written.
//! What is judged is whole messages or pieces of large ones; rows are never gathered.

/// Per direction. Smaller costs system calls, larger costs memory per session; TLS records are 16 KiB at most.
pub const WINDOW_BYTES: usize = 16 * 1024;

/// Read bytes of a message stream, in one fixed piece of memory.
#[derive(Debug)]
pub struct Window {
    bytes: Box<[u8]>,
    start: usize,
    judged: usize,
    end: usize,
}

impl Window {
    pub fn new() -> Self {
        Self { bytes: vec![0; WINDOW_BYTES].into_boxed_slice(), start: 0, judged: 0, end: 0 }
    }
    /// With bytes that were read before the relay began. They fit: start-up reads less than a window.
    pub fn with(read_before: &[u8]) -> Self {
        let mut window = Self::new();
        let length = read_before.len().min(WINDOW_BYTES);
        debug_assert_eq!(length, read_before.len());
        window.bytes[..length].copy_from_slice(&read_before[..length]);
        window.end = length;
        window
    }
    /// May be written now.
    pub fn judged(&self) -> &[u8] {
        &self.bytes[self.start..self.judged]
    }
    pub fn unjudged(&self) -> &[u8] {
        &self.bytes[self.judged..self.end]
    }
    pub fn unjudged_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.judged..self.end]
    }
    pub fn pass(&mut self, bytes: usize) {
        self.judged = self.judged.saturating_add(bytes).min(self.end);
    }
    pub fn written(&mut self, bytes: usize) {
        self.start = self.start.saturating_add(bytes).min(self.judged);
    }
    /// Room to read into; never empty while the judge holds back less than a window.
    pub fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.judged -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }
    pub fn filled(&mut self, bytes: usize) {
        self.end = self.end.saturating_add(bytes).min(self.bytes.len());
    }
}
