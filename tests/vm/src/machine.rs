//! Boots the machine that `scripts/vm-root.sh` has made, with programs and empty disks of the caller's, and hears what it says.
//! Software emulation: nothing of the host is needed but processor time.

use anyhow::{Context, bail, ensure};
use pgstead_types::Tick;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// What it says when it is done, before the exit status of the program that was brought along.
const VERDICT: &str = "vm: exit status ";
const MEMORY_MB: u32 = 2048;

/// What to boot with.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    /// The folder that `scripts/vm-root.sh` has made.
    pub root: &'a Path,
    /// Files that the machine finds under `/payload`, by their names there.
    pub programs: &'a [(&'a str, &'a Path)],
    /// What it runs, as a line for a shell.
    pub run: &'a str,
    /// So many empty disks, `/dev/vdc` and on.
    pub disks: usize,
    pub disk_bytes: u64,
    /// It is ended after so long.
    pub limit: Duration,
}

/// What a machine has said, and whether what it ran succeeded.
#[derive(Debug)]
pub struct Verdict {
    pub said: Vec<String>,
    pub succeeded: bool,
}

/// Boots a machine, hands each line that it says to `hear`, and waits for its end.
pub fn run(boot: &Boot<'_>, mut hear: impl FnMut(&str)) -> anyhow::Result<Verdict> {
    let folder = TempDir::new().context("cannot make a folder for the machine")?;
    let payload = make_payload(folder.path(), boot)?;
    let mut args = vec!["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-nodefaults"];
    args.extend(["-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio", "-append"]);
    args.push("console=ttyS0 quiet panic=-1");
    let memory = format!("{MEMORY_MB}");
    args.extend(["-m", &memory]);
    let mut qemu = command("qemu-system-x86_64");
    qemu.args(args).arg("-kernel").arg(boot.root.join("kernel")).arg("-initrd").arg(boot.root.join("first.img"));
    let drive = |path: &Path, more: &str| format!("file={},format=raw,if=virtio{more}", path.display());
    qemu.arg("-drive").arg(drive(&boot.root.join("root.img"), ",snapshot=on"));
    qemu.arg("-drive").arg(drive(&payload, ",readonly=on"));
    for number in 0..boot.disks {
        let path = folder.path().join(format!("disk-{number}"));
        let file = File::create(&path).context("cannot make a disk")?;
        file.set_len(boot.disk_bytes).context("cannot make a disk")?;
        // It is thrown away with the machine; nothing is gained by waiting for the host's disk.
        qemu.arg("-drive").arg(drive(&path, ",cache=unsafe,discard=unmap"));
    }
    let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut child = Ended(child.context("cannot start qemu-system-x86_64; run scripts/setup.sh vm")?);
    let stdout = child.0.stdout.take().context("its output was asked for")?;
    let (lines, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let begun = Tick::now();
    let mut said = Vec::new();
    loop {
        let left = boot.limit.saturating_sub(Tick::now().since(begun));
        match heard.recv_timeout(left) {
            Ok(line) => {
                let line = plain(&line);
                hear(&line);
                if let Some(status) = line.strip_prefix(VERDICT) {
                    return Ok(Verdict { succeeded: status.trim() == "0", said });
                }
                said.push(line);
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                bail!("the machine was not done after {:?}; it said last:\n{}", boot.limit, last(&said))
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                bail!("the machine ended without a verdict; it said last:\n{}", last(&said))
            }
        }
    }
}

/// Where `scripts/vm-root.sh` puts what it makes.
pub fn root() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/vm-root");
    ensure!(root.join("made").exists(), "there is no machine at {}; run scripts/setup.sh vm", root.display());
    Ok(root)
}

/// A machine that is ended with whoever started it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn make_payload(folder: &Path, boot: &Boot<'_>) -> anyhow::Result<PathBuf> {
    let files = folder.join("payload");
    fs::create_dir(&files).context("cannot make the payload's folder")?;
    let mut bytes = 0;
    for (name, program) in boot.programs {
        let to = files.join(name);
        fs::copy(program, &to).with_context(|| format!("cannot copy {}", program.display()))?;
        // Symbols are most of a debug build, and all of it is read from an emulated disk.
        if fs::read(&to).is_ok_and(|bytes| bytes.starts_with(b"\x7fELF")) {
            run_here(command("strip").arg("--strip-debug").arg(&to))?;
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).context("cannot set a mode")?;
        bytes += fs::metadata(&to).context("cannot look at a copy")?.len();
    }
    let start = files.join("start");
    fs::write(&start, format!("#!/bin/bash\n{}\n", boot.run)).context("cannot write the start")?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755)).context("cannot set a mode")?;
    let image = folder.join("payload.img");
    let size = format!("{}M", bytes / 1_000_000 + 16);
    let mut make = command("mke2fs");
    make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&files).arg(&image).arg(size);
    run_here(&mut make)?;
    Ok(image)
}

fn run_here(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the machine and the programs that make its disks are no part of the product"
)]
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Without what firmware sends to a terminal.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => match rest.next() {
                Some('[') => while rest.next().is_some_and(|c| !c.is_ascii_alphabetic()) {},
                _ => continue,
            },
            c if c.is_control() && c != '\t' => {}
            c => out.push(c),
        }
    }
    out
}

fn last(said: &[String]) -> String {
    said[said.len().saturating_sub(30)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_a_terminal_is_left_out() {
        assert_eq!(plain("\u{1b}c\u{1b}[?7l\u{1b}[2Jok\r"), "ok");
    }
}
