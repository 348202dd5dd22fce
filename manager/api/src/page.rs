//! Lists in bounded pieces, ordered by id.

use crate::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Without `limit`.
pub const LIMIT_DEFAULT: usize = 100;
/// Keeps one answer within a few megabytes.
pub const LIMIT_MAX: usize = 1000;

/// Which piece of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// At most so many, 1 to 1000; 100 if absent.
    pub limit: Option<usize>,
    /// Continue after this id: the `next` of the piece before.
    pub after: Option<String>,
}

/// A piece of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Set when there is more: ask again with `after` set to it.
    pub next: Option<String>,
}

pub fn check_limit(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(LIMIT_DEFAULT) {
        limit if (1..=LIMIT_MAX).contains(&limit) => Ok(limit),
        limit => Err(Problem::new(Code::Malformed, format!("limit is {limit}; expected 1 to {LIMIT_MAX}"))),
    }
}

/// Cuts a piece out of `all`, which is ordered by id.
pub fn cut<'a, Id, Item, View>(
    params: &PageParams,
    all: impl Iterator<Item = (Id, &'a Item)>,
    view: impl Fn(&'a Item) -> View,
) -> Result<Page<View>, Problem>
where
    Id: Ord + std::str::FromStr + std::fmt::Display,
    Item: 'a,
{
    let limit = check_limit(params.limit)?;
    let after = match params.after.as_deref().map(str::parse::<Id>) {
        None => None,
        Some(Ok(id)) => Some(id),
        Some(Err(_)) => {
            return Err(Problem::new(Code::Malformed, "after is not an id; expected the `next` of the piece before"));
        }
    };
    let mut rest = all.filter(|(id, _)| after.as_ref().is_none_or(|after| id > after));
    let mut items = Vec::new();
    let mut last = None;
    for (id, item) in rest.by_ref().take(limit) {
        items.push(view(item));
        last = Some(id);
    }
    let next = rest.next().and(last).map(|id| id.to_string());
    Ok(Page { items, next })
}
