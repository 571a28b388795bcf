"""Tables made of DataFrames of events, for pictures: groups, heat maps, timelines."""
