"""What a configuration needs of an AWS account: permissions, resources, quotas, money, and no secrets."""
