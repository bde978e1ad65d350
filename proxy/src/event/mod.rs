//! What Sluice tells the world: events, the summary.
