//! Reading requests: bodies, parameters and preconditions, each mistake answered by a problem that names it.

use crate::problem::{Code, Problem};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, header};
use pgstead_types::record::{ClusterRecord, MemberRecord, NodeRecord, Record};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The largest body taken: a spec with a thousand settings is a tenth of it.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(bad_body(&rejection)),
        }
    }
}

/// A JSON body, or none for the default.
pub struct OptionalBody<T>(pub T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for OptionalBody<T> {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
                too_large()
            } else {
                Problem::new(Code::Malformed, format!("the body cannot be read: {}", rejection.body_text()))
            }
        })?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        let mut again = Request::new(axum::body::Body::from(bytes));
        *again.headers_mut() = headers;
        let Body(body) = Body::from_request(again, state).await?;
        Ok(Self(body))
    }
}

pub(crate) fn too_large() -> Problem {
    Problem::new(
        Code::TooLarge,
        format!("the body is larger than {BODY_BYTES_MAX} bytes; expected a JSON object of at most that size"),
    )
}

fn bad_body(rejection: &JsonRejection) -> Problem {
    match rejection {
        // What serde says names the key and the place ("unknown field `replicas`, expected one of ...").
        JsonRejection::JsonDataError(error) => Problem::new(
            Code::Invalid,
            format!("the body does not fit: {}; expected the fields of docs/openapi.json", root_cause(error)),
        ),
        JsonRejection::JsonSyntaxError(error) => Problem::new(
            Code::Malformed,
            format!("the body is not valid JSON: {}; expected one JSON object", root_cause(error)),
        ),
        JsonRejection::MissingJsonContentType(_) => Problem::new(
            Code::NotJson,
            "the body has no JSON content type; expected a JSON object and the header content-type: application/json",
        ),
        JsonRejection::BytesRejection(error) if error.status() == http::StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        other => Problem::new(Code::Malformed, format!("the body cannot be read: {}", other.body_text())),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The parameters after the question mark.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(params)) => Ok(Self(params)),
            Err(rejection) => {
                Err(Problem::new(Code::Malformed, format!("the parameters do not fit: {}", root_cause(&rejection))))
            }
        }
    }
}

/// The name or id in the path.
pub struct Asked(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Asked {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::<String>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(asked)) => Ok(Self(asked)),
            Err(rejection) => {
                Err(Problem::new(Code::Malformed, format!("the path cannot be read: {}", rejection.body_text())))
            }
        }
    }
}

/// The revision in `If-Match`, if the caller set one.
pub struct IfMatch(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        if_match(&parts.headers).map(Self)
    }
}

fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or("").trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|inner| inner.parse().ok());
    number.map(Some).ok_or_else(|| {
        Problem::new(
            Code::Malformed,
            format!("If-Match is {text:?}; expected one ETag as GET answered it, such as \"17\" with its quotes"),
        )
    })
}

/// A duration as people write it: `30s`, `5m`, `1h 30m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    // Days are 24 hours here, whatever clocks do to some of them.
    let days = text.strip_suffix('d').filter(|count| count.len() <= 6).and_then(|count| count.parse::<u32>().ok());
    if let Some(days) = days {
        return Ok(Duration::from_secs(u64::from(days) * 24 * 3600));
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|signed| Duration::try_from(signed).ok())
        .ok_or_else(|| format!("{text:?} is not a duration; expected a number with a unit, such as 30s, 5m or 1h"))
}

/// The cluster of that name or id.
pub(crate) fn find_cluster<'a>(record: &'a Record, asked: &str) -> Result<&'a ClusterRecord, Problem> {
    let by_id = asked.parse().ok().and_then(|id| record.clusters.get(&id));
    by_id.or_else(|| record.cluster_named(asked)).ok_or_else(|| Problem::not_found("cluster", asked))
}

/// The node of that name or id.
pub(crate) fn find_node<'a>(record: &'a Record, asked: &str) -> Result<&'a NodeRecord, Problem> {
    let by_id = asked.parse().ok().and_then(|id| record.nodes.get(&id));
    by_id.or_else(|| record.node_named(asked)).ok_or_else(|| Problem::not_found("node", asked))
}

/// The member of `cluster` of that name or id.
pub(crate) fn find_member<'a>(cluster: &'a ClusterRecord, asked: &str) -> Result<&'a MemberRecord, Problem> {
    let by_id = asked.parse().ok().and_then(|id| cluster.members.get(&id));
    by_id.or_else(|| cluster.members.values().find(|member| member.name == asked)).ok_or_else(|| {
        let names: Vec<&str> = cluster.members.values().map(|member| member.name.as_str()).collect();
        let asked: String = asked.chars().take(80).collect();
        Problem::new(
            Code::NotFound,
            format!("cluster {} has no member {asked:?}; expected one of {}", cluster.spec.name, names.join(", ")),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::IF_MATCH, value.parse().unwrap())])
    }

    #[test]
    fn if_match_takes_an_etag_or_a_star() {
        assert_eq!(if_match(&headers("\"17\"")).unwrap(), Some(17));
        assert_eq!(if_match(&headers("*")).unwrap(), None);
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
        assert!(if_match(&headers("17")).unwrap_err().detail.contains("quotes"));
        assert!(if_match(&headers("W/\"17\"")).is_err(), "a weak tag cannot protect a change");
    }

    #[test]
    fn durations_read_as_people_write_them() {
        assert_eq!(parse_duration("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(parse_duration("1h 30m").unwrap(), Duration::from_secs(5400));
        assert!(parse_duration("30").unwrap_err().contains("unit"));
        assert!(parse_duration("-5s").is_err());
    }
}
