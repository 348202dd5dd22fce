//! The kernel's words for limits: `io.max` of a control group (cgroup-v2.rst, "IO Interface Files"), a line per device that has some.

use super::device::parse_number;
use pgstead_types::Bytes;
use pgstead_types::io_limits::{IoLimits, IoRate, Iops};
use std::collections::BTreeMap;

/// By the numbers of the devices.
pub type IoMax = BTreeMap<(u32, u32), IoLimits>;

/// `253:4 rbps=2097152 wbps=max riops=max wiops=120`. A device whose line cannot be read has other limits than anybody wants.
pub fn parse(text: &str) -> IoMax {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(device, limits)| Some((parse_number(device)?, parse_limits(limits)))).collect()
}

fn parse_limits(text: &str) -> IoLimits {
    let of = |key: &str| {
        let said = text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
        said.parse::<u64>().ok()
    };
    let iops = |key| of(key).map(|count| Iops(u32::try_from(count).unwrap_or(u32::MAX)));
    let rate = |key| of(key).map(|count| IoRate(Bytes(count)));
    IoLimits { read_iops: iops("riops"), write_iops: iops("wiops"), read_rate: rate("rbps"), write_rate: rate("wbps") }
}

/// A line that the kernel takes: all four of one device, so that none is left from before.
fn render((major, minor): (u32, u32), limits: &IoLimits) -> String {
    let said = |limit: Option<u64>| limit.map_or_else(|| "max".to_string(), |limit| limit.to_string());
    let iops = |limit: Option<Iops>| said(limit.map(|limit| u64::from(limit.0)));
    let rate = |limit: Option<IoRate>| said(limit.map(|limit| limit.0.0));
    format!(
        "{major}:{minor} rbps={} wbps={} riops={} wiops={}",
        rate(limits.read_rate),
        rate(limits.write_rate),
        iops(limits.read_iops),
        iops(limits.write_iops)
    )
}

/// The lines that are to be written, each by itself, so that one device has the limits that are wanted and others none. After a
/// reboot of a pool a volume may have another number.
pub fn changes(found: &IoMax, wanted: Option<((u32, u32), IoLimits)>) -> Vec<String> {
    let device = wanted.map(|(device, _)| device);
    let others = found.iter().filter(|(held, limits)| Some(**held) != device && !limits.is_none());
    let mut lines: Vec<String> = others.map(|(other, _)| render(*other, &IoLimits::default())).collect();
    if let Some((device, limits)) = wanted
        && found.get(&device).copied().unwrap_or_default() != limits
    {
        lines.push(render(device, &limits));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.1 has written it.
    const RECORDED: &str =
        "253:4 rbps=2097152 wbps=max riops=max wiops=120\n259:0 rbps=max wbps=1048576 riops=max wiops=max\n";

    fn limits(text: &str) -> IoLimits {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_the_kernel_says_is_read_and_written_alike() {
        let found = parse(RECORDED);
        assert_eq!(found[&(253, 4)], limits(r#"{"read_rate":"2MB","write_iops":120}"#));
        let written: Vec<String> = found.iter().map(|(device, limits)| render(*device, limits)).collect();
        assert_eq!(written.join("\n") + "\n", RECORDED);
        assert!(parse("").is_empty() && parse("nonsense\n\n8 x").is_empty());
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        let wanted = limits(r#"{"write_rate":"1MB"}"#);
        let found = parse("259:0 rbps=max wbps=1048576 riops=max wiops=max\n");
        assert!(changes(&found, Some(((259, 0), wanted))).is_empty());
        assert!(changes(&IoMax::new(), None).is_empty());
        assert!(changes(&IoMax::new(), Some(((259, 0), IoLimits::default()))).is_empty());
    }

    #[test]
    fn the_device_gets_its_limits_and_others_lose_theirs() {
        let found = parse(RECORDED);
        let wanted = limits(r#"{"write_rate":"1MB"}"#);
        assert_eq!(
            changes(&found, Some(((253, 9), wanted))),
            [
                "253:4 rbps=max wbps=max riops=max wiops=max",
                "259:0 rbps=max wbps=max riops=max wiops=max",
                "253:9 rbps=max wbps=1048576 riops=max wiops=max"
            ]
        );
        assert_eq!(changes(&found, None).len(), 2);
        assert_eq!(changes(&found, Some(((259, 0), wanted))).len(), 1);
    }
}
