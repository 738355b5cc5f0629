"""The grader's own clients, which write down all they see."""
