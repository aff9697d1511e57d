"""From a point of the space to a priced configuration, admitted or refused."""
