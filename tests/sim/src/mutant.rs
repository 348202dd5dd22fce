//! Mutations: each removes one rule of the protocol by search and replace, and the simulation must notice. The files in
//! `mutants/` are read here; `bin/mutants` applies them to a copy of the tree, never to the tree itself.

use std::path::Path;

/// One file of `mutants/`: a title, the rule in our words, and the edits that remove it.
pub struct Mutant {
    pub name: String,
    pub title: String,
    pub rule: String,
    pub edits: Vec<Edit>,
}

pub struct Edit {
    /// From the root of the repository.
    pub file: String,
    /// Stands exactly once in that file.
    pub before: String,
    pub after: String,
}

impl Mutant {
    /// Lines `title:`, `rule:`, then one or more of `file:`, `before:` with the text below it, `after:` likewise.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut mutant = Self { name: name.to_string(), title: String::new(), rule: String::new(), edits: Vec::new() };
        let mut into: Option<&str> = None;
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("title:") {
                mutant.title = title.trim().to_string();
            } else if let Some(rule) = line.strip_prefix("rule:") {
                mutant.rule = rule.trim().to_string();
            } else if let Some(file) = line.strip_prefix("file:") {
                let file = file.trim().to_string();
                mutant.edits.push(Edit { file, before: String::new(), after: String::new() });
                into = None;
            } else if line == "before:" || line == "after:" {
                into = Some(line);
            } else if let (Some(part), Some(edit)) = (into, mutant.edits.last_mut()) {
                let text = if part == "before:" { &mut edit.before } else { &mut edit.after };
                text.push_str(line);
                text.push('\n');
            } else if !line.trim().is_empty() {
                return Err(format!("{name}: {line:?} stands outside of every part"));
            }
        }
        for text in mutant.edits.iter_mut().flat_map(|edit| [&mut edit.before, &mut edit.after]) {
            // A part of a line may be replaced, too.
            text.truncate(text.trim_end_matches('\n').len());
        }
        let empty = mutant.title.is_empty() || mutant.rule.is_empty() || mutant.edits.is_empty();
        if empty || mutant.edits.iter().any(|edit| edit.before.trim().is_empty()) {
            return Err(format!("{name} needs a title, a rule, and edits with file, before and after"));
        }
        Ok(mutant)
    }

    /// Every file of a folder, by name.
    pub fn all(folder: &Path) -> Result<Vec<Self>, String> {
        let entries = std::fs::read_dir(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
        let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        let read = |path: &std::path::PathBuf| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().to_string();
            let text = std::fs::read_to_string(path).map_err(|why| format!("{}: {why}", path.display()))?;
            Self::parse(&name, &text)
        };
        files.iter().map(read).collect()
    }
}

impl Edit {
    /// The file with the rule removed.
    pub fn applied(&self, text: &str) -> Result<String, String> {
        match text.matches(self.before.as_str()).count() {
            1 => Ok(text.replacen(self.before.as_str(), &self.after, 1)),
            found => Err(format!("{} has the text to be replaced {found} times, expected once", self.file)),
        }
    }
}
