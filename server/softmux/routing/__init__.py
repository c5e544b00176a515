"""Which of several replicas a request goes to: there where its adapter is warm, as long as that one is not too busy."""
