"""The Streamlit application: memory that grows, rewards that move, and what forgetting does. `app.py` begins it."""

PAGES = {
    "overview": ("Overview", ":material/monitoring:"),
    "growth": ("Memory growth", ":material/stacked_line_chart:"),
    "rewards": ("Rewards", ":material/bar_chart:"),
    "retention": ("Retention lab", ":material/science:"),
    "explorer": ("Memory explorer", ":material/travel_explore:"),
    "agents": ("Agents and generations", ":material/groups:"),
    "experiments": ("Experiments", ":material/labs:"),
    "operations": ("Operations", ":material/settings_heart:"),
}
"""Title and icon of each page, by the end of its address, in the order of the side bar."""
