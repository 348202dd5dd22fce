//! Limits of reads and writes as the API shows them.

use pgstead_types::io_limits::IoRate;
use serde::Serialize;
use utoipa::ToSchema;

/// Of each member. What is left out has no limit. (Shows `pgstead_types::io_limits::IoLimits` to readers.)
#[derive(Serialize, ToSchema)]
#[schema(as = IoLimits)]
pub struct IoLimitsSchema {
    /// Reads a second.
    #[schema(required = false, minimum = 100)]
    read_iops: Option<u32>,
    /// Writes a second.
    #[schema(required = false, minimum = 100)]
    write_iops: Option<u32>,
    /// Bytes read a second, such as `200MB`, 1MB to 1TB.
    #[schema(required = false, value_type = Option<String>, pattern = "^[0-9]+ ?(MB|GB|TB)$")]
    read_rate: Option<IoRate>,
    /// Bytes written a second.
    #[schema(required = false, value_type = Option<String>, pattern = "^[0-9]+ ?(MB|GB|TB)$")]
    write_rate: Option<IoRate>,
}
