//! `pgstead placement explain`.

use crate::args::ExplainArgs;
use crate::exit::Failure;
use crate::render;
use crate::screen::Screen;
use pgstead_api::PlacementParams;
use pgstead_api::client::Client;

pub async fn explain(args: &ExplainArgs, client: &Client, screen: &mut Screen<'_>) -> Result<(), Failure> {
    let found = match &args.name {
        Some(cluster) => client.placement(cluster).await?,
        None => {
            let asked = PlacementParams {
                members: args.members,
                regions: (!args.regions.is_empty()).then(|| args.regions.join(",")),
                zones_min: args.zones_min,
                placement_weights: args.placement_weights,
            };
            client.placement_of_new(&asked).await?
        }
    };
    screen.show(&found, |found, width| render::placement(found, args.top, width))
}
