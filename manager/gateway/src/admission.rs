//! Counts client connections: in all, and per cluster, so that one cluster cannot take every place.

use pgstead_types::ClusterId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

#[derive(Clone)]
pub struct Admission(Arc<Inner>);

struct Inner {
    total_max: usize,
    per_cluster_max: usize,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    clusters: HashMap<ClusterId, usize>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Full {
    #[error("too many connections: this gateway has its {0}, the most that it takes")]
    Gateway(usize),
    #[error("too many connections: this cluster has {0} through this gateway, the most that it takes for one cluster")]
    Cluster(usize),
}

/// A place; given back when dropped.
pub struct Admitted {
    admission: Admission,
    cluster: ClusterId,
}

impl Admission {
    pub fn new(total_max: usize, per_cluster_max: usize) -> Self {
        Self(Arc::new(Inner { total_max, per_cluster_max, counts: Mutex::default() }))
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.counts.lock().expect("no code panics while it holds this lock")
    }

    pub fn try_admit(&self, cluster: ClusterId) -> Result<Admitted, Full> {
        let mut counts = self.counts();
        if counts.total >= self.0.total_max {
            return Err(Full::Gateway(self.0.total_max));
        }
        let of_cluster = counts.clusters.entry(cluster).or_default();
        if *of_cluster >= self.0.per_cluster_max {
            return Err(Full::Cluster(self.0.per_cluster_max));
        }
        *of_cluster += 1;
        counts.total += 1;
        Ok(Admitted { admission: self.clone(), cluster })
    }

    pub fn in_use(&self) -> usize {
        self.counts().total
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        counts.total -= 1;
        if let Some(of_cluster) = counts.clusters.get_mut(&self.cluster) {
            *of_cluster -= 1;
            if *of_cluster == 0 {
                counts.clusters.remove(&self.cluster);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cluster_leaves_room_for_the_others() {
        let (a, b) = (ClusterId::from_u128(1), ClusterId::from_u128(2));
        let admission = Admission::new(3, 2);
        let first = admission.try_admit(a).unwrap();
        let _second = admission.try_admit(a).unwrap();
        assert_eq!(admission.try_admit(a).err(), Some(Full::Cluster(2)));
        let _third = admission.try_admit(b).unwrap();
        assert_eq!(admission.try_admit(b).err(), Some(Full::Gateway(3)));
        drop(first);
        assert!(admission.try_admit(b).is_ok());
        assert_eq!(admission.in_use(), 2);
    }
}
