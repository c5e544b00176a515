"""Who speaks: a base with an adapter, or a long text, before what it is asked."""
