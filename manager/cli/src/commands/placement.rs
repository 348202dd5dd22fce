//! `pgstead placement explain`.

use crate::args::{ExplainArgs, PlacementArgs};
use crate::exit::Failure;
use crate::render;
use crate::screen::Screen;
use pgstead_api::PlacementParams;
use pgstead_api::client::Client;

pub async fn explain(args: &ExplainArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let found = match &args.name {
        Some(cluster) => client.placement(cluster).await?,
        None => {
            let PlacementArgs { regions, zones_min, storage_class, placement_weights } = &args.asked;
            let asked = PlacementParams {
                members: args.members,
                regions: (!regions.is_empty()).then(|| regions.join(",")),
                zones_min: *zones_min,
                storage_class: storage_class.clone(),
                placement_weights: *placement_weights,
            };
            client.placement_of_new(&asked).await?
        }
    };
    screen.show(&found, |found, width| render::placement(found, args.top, width))
}
