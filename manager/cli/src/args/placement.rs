//! What is asked of the nodes of members, and `pgstead placement`.

use clap::{Args, Subcommand};
use pgstead_types::placement::PlacementWeights;

/// Of a new cluster.
#[derive(Args, Clone, Debug)]
pub struct PlacementArgs {
    /// Place members in this region only; may be repeated [default: in any]
    #[arg(long = "region", value_name = "REGION")]
    pub regions: Vec<String>,
    /// Place members so that they are in so many zones at least
    #[arg(long, value_name = "N")]
    pub zones_min: Option<u8>,
    /// Make members' volumes in pools of this class [default: the class of each node's first pool]
    #[arg(long, value_name = "CLASS")]
    pub storage_class: Option<String>,
    /// How much each term of a node's score counts, 0 to 100 each, some of them [default: latency=10,free=30,health=20,idle=40]
    #[arg(long, value_name = "TERM=N,…")]
    pub placement_weights: Option<PlacementWeights>,
}

#[derive(Subcommand, Clone, Debug)]
pub enum PlacementCommands {
    /// Show where one more member of a cluster would go and how those that it has are placed, or where the members of a new cluster would
    /// go: every node with the rule that speaks against it, or its score. Changes nothing
    #[command(
        after_help = "Examples:\n  pgstead placement explain app\n  pgstead placement explain --members 3 --region eu --zones-min 3\n  \
        pgstead placement explain --members 3 --placement-weights latency=100 --output json"
    )]
    Explain(ExplainArgs),
}

#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// Of one more member of this cluster, by name or id [default: of a new cluster]
    #[arg(value_name = "CLUSTER", conflicts_with_all = ["members", "regions", "zones_min", "storage_class", "placement_weights"])]
    pub name: Option<String>,
    /// Members of the new cluster: 1 to 7 [default: 3]
    #[arg(long, value_name = "N")]
    pub members: Option<u8>,
    #[command(flatten)]
    pub asked: PlacementArgs,
    /// Show so many nodes, and count the others; JSON has them all
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub top: usize,
}
