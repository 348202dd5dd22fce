//! Errors as `application/problem+json` (RFC 9457): a stable code for programs and one sentence for people that says
//! what is wrong, what was expected and what to do.

use crate::backend::Rejected;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use pgstead_types::record::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub const CONTENT_TYPE: &str = "application/problem+json";

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:ident, $title:literal;)+) => {
        /// What kind of problem. Codes never change their meaning; new ones may come.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $($(#[$doc])* $name,)+
            /// A code of a newer server.
            #[serde(other)]
            Other,
        }
        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)+ Code::Other => "other" }
            }
            pub const fn status(self) -> StatusCode {
                match self { $(Code::$name => StatusCode::$status,)+ Code::Other => StatusCode::INTERNAL_SERVER_ERROR }
            }
            pub const fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)+ Code::Other => "Another problem" }
            }
        }
    };
}

codes! {
    /// The request's text or parameters cannot be read.
    Malformed = "malformed", BAD_REQUEST, "The request cannot be read";
    Unauthorized = "unauthorized", UNAUTHORIZED, "No valid token";
    BadJoinToken = "bad_join_token", FORBIDDEN, "The join token is not valid";
    NotFound = "not_found", NOT_FOUND, "There is no such thing";
    NoSuchRoute = "no_such_route", NOT_FOUND, "There is no such path";
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED, "The path does not take this method";
    /// It contradicts the present state.
    Conflict = "conflict", CONFLICT, "It cannot be done in the present state";
    Exists = "exists", CONFLICT, "The name is taken";
    /// `If-Match` named another revision than the present one.
    RevisionChanged = "revision_changed", PRECONDITION_FAILED, "It changed meanwhile";
    TooLarge = "too_large", PAYLOAD_TOO_LARGE, "The request is too large";
    NotJson = "not_json", UNSUPPORTED_MEDIA_TYPE, "The request is not JSON";
    /// Readable, and it cannot be: an unknown key, a wrong type, a spec against the rules.
    Invalid = "invalid", UNPROCESSABLE_ENTITY, "The request asks for something that cannot be";
    Internal = "internal", INTERNAL_SERVER_ERROR, "The node failed to answer";
    /// The controller could not be reached and nothing was done.
    ControllerUnreachable = "controller_unreachable", BAD_GATEWAY, "The controller cannot be reached";
    /// The Raft group has no leader and nothing was done.
    NoController = "no_controller", SERVICE_UNAVAILABLE, "The Raft group has no leader";
    /// It may or may not have been done.
    OutcomeUnknown = "outcome_unknown", GATEWAY_TIMEOUT, "It is unknown whether it was done";
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:pgstead:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    pub code: Code,
    pub title: String,
    pub status: u16,
    /// What is wrong, what was expected, and what to do.
    pub detail: String,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:pgstead:problem:{}", code.as_str()),
            code,
            title: code.title().to_string(),
            status: code.status().as_u16(),
            detail: detail.into(),
        }
    }

    pub(crate) fn not_found(what: &str, asked: &str) -> Self {
        let asked: String = asked.chars().take(80).collect();
        let list = match what {
            "member" => "GET /v1/members",
            "node" => "GET /v1/nodes",
            "operation" => "GET /v1/operations; operations are kept for a while after they have ended",
            _ => "GET /v1/clusters",
        };
        Self::new(
            Code::NotFound,
            format!("no {what} {asked:?} in this deployment; expected the name or id of one that {list} lists"),
        )
    }

    pub(crate) fn no_controller(why: &str) -> Self {
        Self::new(
            Code::NoController,
            format!(
                "{why}; nothing was done. The clusters go on serving. A majority of the voters must run and reach each \
                 other: check `pgstead node list`, the daemon on each voter and the network between them, then try again"
            ),
        )
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.detail)
    }
}
impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).expect("a problem is plain text and numbers");
        let mut answer = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if self.code == Code::Unauthorized {
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code == Code::NoController {
            // An election takes a few seconds at most; a lost majority takes a person.
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
        }
        answer
    }
}

impl From<Rejected> for Problem {
    fn from(rejected: Rejected) -> Self {
        let text = rejected.to_string();
        match rejected {
            Rejected::Refused(refusal) => match refusal {
                Refusal::StaleRevision { expected, found } => Self::new(
                    Code::RevisionChanged,
                    format!(
                        "the cluster is at revision {found}, not at the expected {expected}: it changed meanwhile; look \
                         again, and ask anew if it is still wanted"
                    ),
                ),
                Refusal::NotFound { what, id } => Self::not_found(&what, &id),
                Refusal::Exists { .. } => Self::new(Code::Exists, text),
                Refusal::BadToken { .. } => Self::new(Code::BadJoinToken, text),
                Refusal::StaleEpoch { .. } => Self::new(Code::Conflict, format!("{text}; look again and ask anew")),
                Refusal::Conflict { .. } => Self::new(Code::Conflict, text),
            },
            Rejected::BadSpec(_) | Rejected::Invalid { .. } => Self::new(Code::Invalid, text),
            Rejected::NotFound { what, id } => Self::not_found(what, &id),
            Rejected::Conflict { .. } => Self::new(Code::Conflict, text),
            Rejected::BadToken { .. } => Self::new(Code::BadJoinToken, text),
            Rejected::NotController => Self::no_controller("the Raft group is changing its leader"),
            Rejected::NoQuorum { why } => Self::no_controller(&format!("the Raft group has no quorum ({why})")),
            Rejected::Unreachable { .. } => Self::new(
                Code::ControllerUnreachable,
                format!("{text}; nothing was done. Ask that node itself, or check the network between the nodes"),
            ),
            Rejected::Unknown { .. } => {
                Self::new(Code::OutcomeUnknown, format!("{text}; look at the present state before asking again"))
            }
            Rejected::Internal { why } => {
                // The cause may hold paths or worse; it belongs in the node's log.
                tracing::error!(error = %why, "request failed");
                Self::new(
                    Code::Internal,
                    "the node failed to answer for a reason of its own; its log says why, under this request's \
                     x-request-id",
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_writes_itself_as_its_text_says() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }

    #[test]
    fn a_code_of_a_newer_server_is_still_read() {
        assert_eq!(serde_json::from_str::<Code>("\"brand_new\"").unwrap(), Code::Other);
    }

    #[test]
    fn an_internal_cause_stays_in_the_log() {
        let problem = Problem::from(Rejected::Internal { why: "password hunter2 at /srv/x".into() });
        assert!(!problem.detail.contains("hunter2"), "{problem:?}");
    }
}
