"""What a person looks at: contact sheets and statistics, as pages that are whole in themselves."""
