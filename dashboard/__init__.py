"""The Streamlit application: memory that grows, rewards that move, and what forgetting does. `app.py` begins it."""
